"""What the fuzz knows beyond the document: how to get a token, and what JSON Schema cannot say."""

import base64
import json
import random
import unicodedata
import urllib.request
import uuid

import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

PASSWORD = "securepassword123"


def is_login(text):
    """JSON Schema knows no normal forms, no control characters and no outer blanks."""
    text = unicodedata.normalize("NFC", text)
    return 3 <= len(text) <= 255 and text.strip() == text and not any(unicodedata.category(c) == "Cc" for c in text)


def is_password(text):
    """JSON Schema counts no bytes. Eight of one character are common."""
    return len(text) >= 8 and len(text.encode()) <= 72 and len(set(text)) > 4


# No login is a password: the document cannot say that they must differ.
MARK = "~"
characters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=MARK)
schemathesis.openapi.format("login", st.text(characters, min_size=3, max_size=64).filter(is_login))
schemathesis.openapi.format(
    "password", st.text(characters, min_size=8, max_size=17).map(lambda text: text + MARK).filter(is_password)
)


def post(base, path, body):
    request = urllib.request.Request(
        base.rstrip("/") + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def account(case):
    """A new one's credentials, and the tokens of its session."""
    credentials = {"login": f"fuzz {uuid.uuid4()}", "password": PASSWORD}
    base = case.operation.base_url
    post(base, "/api/register", credentials)
    return credentials, post(base, "/api/login", credentials)


def session(token):
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sid"]


@schemathesis.hook
def before_call(context, case, kwargs):
    """Of the requests that are well-formed, half are about something that exists."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or random.random() < 0.5:
        return
    operation = case.operation.label
    if operation in ("POST /api/login", "POST /api/delete"):
        case.body, _ = account(case)
    elif operation == "POST /api/refresh":
        _, tokens = account(case)
        case.body = {"refresh_token": tokens["refresh_token"]}
    elif operation == "POST /api/password" and isinstance(case.body, dict):
        case.body["current_password"] = PASSWORD
    elif operation == "DELETE /api/sessions/{id}" and "Authorization" in (case.headers or {}):
        case.path_parameters = {"id": session(case.headers["Authorization"])}


@schemathesis.auth(refresh_interval=None)
class AccessToken:
    """Each request has an account of its own, so that none ends another's session."""

    def get(self, case, context):
        _, tokens = account(case)
        return tokens["access_token"]

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"
