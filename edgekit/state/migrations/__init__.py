"""Alembic migrations of the fleet state. `edgekit.state.tables.open_database` runs them when a database is opened."""
