"""Target tasks: few-shot fine-tuning of the pretrained networks, beside random weights."""
