"""The report of an evaluation for a reader: one HTML page with its pictures, RUN/report."""
