"""Settings as frozen values, read once: defaults, then a TOML file, then the environment, then flags.

The classes describe every key (meaning, unit, default, bounds); the settings reference is generated from them. Nothing
here acts on a setting.
"""

from edgekit.settings.agent import AgentSettings
from edgekit.settings.control import ControlSettings
from edgekit.settings.load import load_settings
from edgekit.settings.tls import TlsFiles, tls_files

__all__ = ["AgentSettings", "ControlSettings", "TlsFiles", "load_settings", "tls_files"]
