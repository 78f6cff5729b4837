"""OpenClaw itself, from npm, with a scripted model in place of one: what the plugin does in the real thing."""
