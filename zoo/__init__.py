"""The proving ground of `make zoo`: fine-tuned siblings of two small real models, on which merges are judged.

Seven MiniLM encoders on seven text tasks and small Llamas on four domains of text, three seeds each, from packages
of PyPI alone: what installs merganser also fetches these. npm and Debian have more (mail, speeches, man pages), but
would ask for two more package managers.
"""
