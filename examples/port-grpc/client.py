"""Asks the server of this directory: `client.py HOST:PORT`."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=20)
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    talk = channel.stream_stream("/example.Echo/Talk")
    for message in talk(iter([b"one", b"two", b"three"]), timeout=20):
        print(message.decode())
