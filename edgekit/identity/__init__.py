"""The identity of devices: their rising numbers, their certificates, and how they get and lose both."""
