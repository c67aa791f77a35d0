"""Alembic's migrations of the fleet state; run by `edgekit.tables.open_database` whenever a database is opened."""
