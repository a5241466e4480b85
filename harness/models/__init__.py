"""The model and its prompts: checkpoints, tokenizers, chats. Knows neither eviction nor tasks."""
