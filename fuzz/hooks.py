"""What the fuzz knows beyond the document: how to get a token, and what JSON Schema cannot say."""

import json
import unicodedata
import urllib.request
import uuid

import schemathesis
from hypothesis import strategies as st

PASSWORD = "securepassword123"


def is_login(text):
    """JSON Schema knows no normal forms, no control characters and no outer blanks."""
    text = unicodedata.normalize("NFC", text)
    return 3 <= len(text) <= 255 and text.strip() == text and not any(unicodedata.category(c) == "Cc" for c in text)


def is_password(text):
    """JSON Schema counts no bytes. Eight of one character are common."""
    return len(text) >= 8 and len(text.encode()) <= 72 and len(set(text)) > 4


characters = st.characters(exclude_categories=["Cs", "Cc"])
schemathesis.openapi.format("login", st.text(characters, min_size=3, max_size=64).filter(is_login))
schemathesis.openapi.format("password", st.text(characters, min_size=8, max_size=18).filter(is_password))


def post(base, path, body):
    request = urllib.request.Request(
        base.rstrip("/") + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@schemathesis.auth(refresh_interval=None)
class AccessToken:
    """Each request has an account of its own, so that none ends another's session."""

    def get(self, case, context):
        credentials = {"login": f"fuzz {uuid.uuid4()}", "password": PASSWORD}
        base = case.operation.base_url
        post(base, "/api/register", credentials)
        return post(base, "/api/login", credentials)["access_token"]

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"
