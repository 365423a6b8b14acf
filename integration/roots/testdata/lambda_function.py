import socket
import urllib.request


def handler(event, context):
    name = socket.getaddrinfo("sandbox.localdomain", 80, type=socket.SOCK_STREAM)[0][4][0]
    return name + " " + urllib.request.urlopen(event["url"], timeout=60).read().decode()
