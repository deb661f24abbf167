"""The mathematics: towers, loss and metrics in plain torch, without ranks or files."""
