"""From environment steps to windows: `collector` steps the environments and fills `replay`, which draws windows for updates."""
