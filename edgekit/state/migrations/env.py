"""Alembic's entry point: runs the migrations on the connection and in the transaction of `edgekit.state.tables`."""

from alembic import context

from edgekit.state.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
