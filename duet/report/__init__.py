"""What a run shows to people: terminal tables, results.csv, figures and report.html."""
