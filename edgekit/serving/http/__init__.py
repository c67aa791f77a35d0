"""The Open Inference Protocol over HTTP/1.1: connections, requests and answers, paths and statuses, metrics.

Nothing here runs a model; requests go to a ModelServer.
"""
