"""Says hello. The counter shows when an execution environment is used again."""

invocations = 0


def lambda_handler(event, context):
    global invocations
    invocations += 1
    name = event.get("name", "world") if isinstance(event, dict) else "world"
    print("saying hello to %s, %d ms left" % (name, context.get_remaining_time_in_millis()))
    return {
        "message": "Hello, %s!" % name,
        "requestId": context.aws_request_id,
        "invocations": invocations,
    }
