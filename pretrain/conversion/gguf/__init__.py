"""Models for llama.cpp and what is built on it (LM Studio, ollama): GGUF files, and a check of them."""
