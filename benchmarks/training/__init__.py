"""How fast training is, beside what people use without it."""
