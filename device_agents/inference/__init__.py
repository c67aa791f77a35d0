"""Answers to local applications: from the local model, or from the cloud tier as a fallback.

Nothing here installs a model; `update` hands over a verified folder. `cloud` has the calls of the cloud tier and what
holds them back, `cascade` the offload certificates, and `watch` what is counted and compared of the answers.
"""
