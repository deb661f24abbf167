# Completes overrides of the trainer's commands, for bash:   . launch/completion.bash
#
#   python -m trainer.train optimizer.<TAB>
#   torchrun --nproc-per-node 2 -m trainer.train model=<TAB>
#   launch/torchrun.sh evaluate run.dir=runs/<TAB>
#
# Hydra knows the fields and choices; its own script knows no python -m.

_trainer_overrides() {
    local line=${COMP_LINE:0:COMP_POINT} python=python before
    [[ $1 == *python* ]] && python=$1
    if [[ $line =~ ^(.*[[:space:]])-m[[:space:]]+trainer\.([a-z_]+)[[:space:]] ]] ||
        [[ $line =~ ^(.*)torchrun\.sh[[:space:]]+([a-z_]+)[[:space:]] ]]; then
        local module=trainer.${BASH_REMATCH[2]} overrides=${line:${#BASH_REMATCH[0]}}
        local word=${overrides##*[[:space:]]}
        mapfile -t COMPREPLY < <(
            choices=$(COMP_LINE="trainer $overrides" "$python" -m "$module" -sc query=bash 2>/dev/null)
            compgen -o default -W "$choices" -- "$word"
        )
        # Where = and : part words, bash has taken what stands before the last of them from the word.
        before=${word%"${word##*["${COMP_WORDBREAKS//[^=:]/}"]}"}
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
}

complete -o default -o nospace -F _trainer_overrides python python3 torchrun torchrun.sh
