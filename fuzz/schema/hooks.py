"""Schemathesis hooks: authentication, and constraints that JSON Schema cannot express."""

import base64
import json
import os
import random
import unicodedata
import urllib.request
import uuid

import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

PASSWORD = "securepassword123"


def is_login(text):
    """Checks normalisation, invisible characters and surrounding whitespace, which JSON Schema cannot."""
    text = unicodedata.normalize("NFC", text)
    is_visible = all(unicodedata.category(c) not in ("Cc", "Cf", "Cn") and not is_filler(c) for c in text)
    return 3 <= len(text) <= 255 and text.strip() == text and is_visible


def is_filler(character):
    """Checks for characters of the property Default_Ignorable_Code_Point of other categories than Cf and Cn."""
    code = ord(character)
    ranges = [(0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF)]
    return code in (0x34F, 0x3164, 0xFFA0) or any(first <= code <= last for first, last in ranges)


def is_password(text):
    """Checks the length in bytes, which JSON Schema cannot. Repetitions of one character are common passwords."""
    text = unicodedata.normalize("NFC", text)
    return len(text) >= 8 and len(text.encode()) <= 72 and len(set(text)) > 4


# Only passwords contain it, so that no password equals a login: the document cannot require that.
PASSWORD_SUFFIX = "~"
characters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=PASSWORD_SUFFIX)
schemathesis.openapi.format("login", st.text(characters, min_size=3, max_size=64).filter(is_login))
schemathesis.openapi.format(
    "password", st.text(characters, min_size=8, max_size=17).map(lambda text: text + PASSWORD_SUFFIX).filter(is_password)
)


def post(base, path, body):
    request = urllib.request.Request(
        base.rstrip("/") + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def create_account(case):
    """Registers and logs in a new user; returns its credentials and tokens."""
    credentials = {"login": f"fuzz {uuid.uuid4()}", "password": PASSWORD}
    base = case.operation.base_url
    post(base, "/api/register", credentials)
    return credentials, post(base, "/api/login", credentials)


def session_id(token):
    """Returns the session that an access token names."""
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sid"]


def is_of_oauth(case):
    return case.operation.path.startswith("/oauth/")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Makes half of the valid requests refer to an existing account or session."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or random.random() < 0.5:
        return
    operation = case.operation.label
    if operation in ("POST /api/login", "POST /api/delete"):
        case.body, _ = create_account(case)
    elif operation == "POST /api/refresh":
        _, tokens = create_account(case)
        case.body = {"refresh_token": tokens["refresh_token"]}
    elif is_of_oauth(case):
        _, tokens = create_account(case)
        case.body = {"token": tokens[random.choice(["access_token", "refresh_token"])]}
    elif operation == "POST /api/password" and isinstance(case.body, dict):
        case.body["current_password"] = PASSWORD
    elif operation == "DELETE /api/sessions/{id}" and "Authorization" in (case.headers or {}):
        case.path_parameters = {"id": session_id(case.headers["Authorization"])}


@schemathesis.auth(refresh_interval=None)
class AccessToken:
    """Gives each request its own account, so that no request ends the session of another, or the client of the run."""

    def get(self, case, context):
        if is_of_oauth(case):
            client = f"{os.environ['FUZZ_CLIENT_ID']}:{os.environ['FUZZ_CLIENT_SECRET']}"
            return f"Basic {base64.b64encode(client.encode()).decode()}"
        _, tokens = create_account(case)
        return f"Bearer {tokens['access_token']}"

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = data
