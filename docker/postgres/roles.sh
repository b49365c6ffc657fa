#!/bin/sh
# Creates the roles of PostgreSQL that are no superuser, or gives them the passwords in secrets/: that of auth-api, which owns its
# database, and with EXPORTERS=1 that of the exporter, which reads statistics. PostgreSQL's image runs it once, when it
# creates the database. It may be run again at any time:
#   docker/compose exec -T postgres sh /docker-entrypoint-initdb.d/roles.sh
set -eu

# psql reads the passwords: as an argument the process list would show them.
psql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
    --set=owner="${DB_USER:-$POSTGRES_USER}" <<'SQL'
\set password `cat /run/secrets/db_password`
SET client_min_messages = warning;
-- Statements have the passwords, and the log has statements that fail.
SET log_min_error_statement = panic;
BEGIN;
SELECT format('CREATE ROLE %I', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner') \gexec
SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', :'owner', :'password') \gexec
-- In an existing deployment the superuser owns them.
SELECT format('ALTER DATABASE %I OWNER TO %I', current_database(), :'owner') \gexec
SELECT format('ALTER %s %s OWNER TO %I', CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
    oid::regclass, :'owner')
FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')
-- A table's own sequences follow it.
AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i') AND relkind = 'S') \gexec
COMMIT;
SQL

[ -r /run/secrets/postgres_exporter_password ] || exit 0
psql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --no-psqlrc --quiet --set=ON_ERROR_STOP=1 <<'SQL'
\set password `cat /run/secrets/postgres_exporter_password`
SET client_min_messages = warning;
SET log_min_error_statement = panic;
BEGIN;
SELECT 'CREATE ROLE postgres_exporter CONNECTION LIMIT 5'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'postgres_exporter') \gexec
SELECT format('ALTER ROLE postgres_exporter LOGIN PASSWORD %L', :'password') \gexec
GRANT pg_monitor TO postgres_exporter;
COMMIT;
SQL
