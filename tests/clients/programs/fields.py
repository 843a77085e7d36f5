"""Every field that the clients' own types know, by route, and the versions of the clients.

Knows the clients' packages. One JSON object on standard output.
"""

import json
from importlib.metadata import version
from typing import get_type_hints

from ollama import Options
from ollama._types import ChatRequest, EmbedRequest, GenerateRequest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

PACKAGES = ("langchain-openai", "litellm", "llm", "ollama", "openai", "pydantic-ai-slim")
TYPES = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsBase,
    "/v1/responses": response_create_params.ResponseCreateParamsBase,
    "/v1/completions": completion_create_params.CompletionCreateParamsBase,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
}
MODELS = {
    "/api/chat": ChatRequest,
    "/api/generate": GenerateRequest,
    "/api/chat options": Options,
    "/api/embed": EmbedRequest,
}
fields = {path: sorted({*get_type_hints(kind)}) for path, kind in TYPES.items()}
fields |= {path: sorted(kind.model_fields) for path, kind in MODELS.items()}
versions = {package: version(package) for package in PACKAGES}
print(json.dumps({"fields": fields, "versions": versions}))
