"""From environment steps to windows: `collector` steps the environments and fills the `replay`, from which windows are drawn."""
