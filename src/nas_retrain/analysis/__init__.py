"""What the accuracies show: rankings and their noise, gains, moves; as tables, figures and a report. No torch."""
