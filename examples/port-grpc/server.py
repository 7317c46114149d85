"""A gRPC server: the standard health service, and an echo that streams both ways."""

import os
import signal
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def echo(messages, context):
    for message in messages:
        yield message


server = grpc.server(futures.ThreadPoolExecutor(8))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
servicer.set("", health_pb2.HealthCheckResponse.SERVING)
methods = {"Talk": grpc.stream_stream_rpc_method_handler(echo)}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("example.Echo", methods)])
server.add_insecure_port(f"[::]:{os.environ['PORT']}")
server.start()
signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=5))
server.wait_for_termination()
