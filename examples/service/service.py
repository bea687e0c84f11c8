"""Answers who it is: `/` in JSON."""

import getpass
import importlib.metadata
import os

import flask
import waitress

app = flask.Flask(__name__)


@app.get("/")
def who():
    return {
        "user": getpass.getuser(),
        "uid": os.getuid(),
        "flask": importlib.metadata.version("flask"),
    }


if __name__ == "__main__":
    waitress.serve(app, host="127.0.0.1", port=int(os.environ["PORT"]))
