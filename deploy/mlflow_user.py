"""The user that runs log to MLflow as, made by its administrator: python deploy/mlflow_user.py

MLFLOW_TRACKING_URI, MLFLOW_ADMIN_PASSWORD, MLFLOW_USER and MLFLOW_PASSWORD say where, by whom, and who.
"""

import os
import sys

import requests

if __name__ == "__main__":
    users = os.environ["MLFLOW_TRACKING_URI"].rstrip("/") + "/api/2.0/mlflow/users"
    admin = ("admin", os.environ["MLFLOW_ADMIN_PASSWORD"])
    name = os.environ["MLFLOW_USER"]
    known = requests.get(f"{users}/get", params={"username": name}, auth=admin, timeout=60)
    if known.status_code == 404:
        user = {"username": name, "password": os.environ["MLFLOW_PASSWORD"]}
        known = requests.post(f"{users}/create", json=user, auth=admin, timeout=60)
    if not known.ok:
        sys.exit(f"MLflow at {users} answers {known.status_code}: {known.text}")
    print(f"MLflow's user {name} is there")
