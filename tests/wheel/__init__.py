"""The wheel, tried as a stranger would: `check` builds it, installs it in an empty environment and uses it there."""
