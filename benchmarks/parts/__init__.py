"""Where the time goes: costs and seconds by part of the model, rooflines, devices, layers."""
