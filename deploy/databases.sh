#!/bin/sh
# Owners and databases of Prefect and MLflow, once, as PostgreSQL's administrator. Passwords come from the environment.
set -eu
: "${PREFECT_DB_PASSWORD:?}" "${MLFLOW_DB_PASSWORD:?}"
exec psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres <<'SQL'
\getenv prefect PREFECT_DB_PASSWORD
\getenv mlflow MLFLOW_DB_PASSWORD
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
SQL
