"""Run migrations over the connection that `edgekit.tables` hands in, inside its transaction."""

from alembic import context

from edgekit.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
