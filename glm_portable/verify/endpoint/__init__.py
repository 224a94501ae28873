"""`glm-portable verify endpoint`: what a server of the OpenAI API makes of a GLM.

Nothing but requests: it examines this server, vLLM, SGLang, xLLM or a provider alike.
"""
