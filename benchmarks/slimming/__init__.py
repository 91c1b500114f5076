"""What pruning leaves of a task: fine-tunes, cells, report, picture."""
