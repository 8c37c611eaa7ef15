"""Drives a server with httpx and httpx-sse: events.py REQUEST, a JSON object on the command line.

    {"method", "url", "json"?, "headers"?, "leaveAfter"?: events}

Prints one line of JSON per event: {"event", "id", "retry", "data"}, then {"status", "contentType"}.
"""

import json
import sys

import httpx
import httpx_sse

request = json.loads(sys.argv[1])
leave_after = request.pop("leaveAfter", None)

with httpx.Client(timeout=httpx.Timeout(10.0, read=40.0), trust_env=False) as client:
    with httpx_sse.connect_sse(client, **request) as source:
        seen = 0
        if source.response.is_success:
            for event in source.iter_sse():
                fields = {"event": event.event, "id": event.id, "retry": event.retry, "data": event.json()}
                print(json.dumps(fields), flush=True)
                seen += 1
                if seen == leave_after:
                    break
        head = source.response.headers
        print(json.dumps({"status": source.response.status_code, "contentType": head.get("content-type")}))
