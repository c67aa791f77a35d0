"""Run migrations over the connection that `edgekit.state.tables` hands in, inside its transaction."""

from alembic import context

from edgekit.state.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
