"""What a trained model is asked besides new cells, one file per question."""
