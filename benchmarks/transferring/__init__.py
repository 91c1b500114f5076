"""What a fine-tune gains against what the base loses: lines of a table on the fine-tunes of the zoo."""
