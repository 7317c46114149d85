def handle(event, context):
    return "Hello from {{name}}\n"
