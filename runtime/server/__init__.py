"""The HTTP server: the OpenAI API over one engine. Imports starlette and uvicorn when it serves."""
