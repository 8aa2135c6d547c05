"""`chorus serve`: finished models over HTTP and WebSocket. Needs `pip install 'chorus-asr[serve]'`.

What is served is what `launcher/inference` recognises; here are the protocol, the limits and the page.
"""
