"""What stages read besides sets: prompts, tasks, text, and the verifiers of answers."""
