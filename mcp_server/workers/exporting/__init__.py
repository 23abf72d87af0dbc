"""What an export does with llama.cpp's tools: converting, quantising, adapters, and loading what came of it."""
