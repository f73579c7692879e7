"""edgerec_gym: on-device feed recommendation (EdgeRec) as a Gymnasium environment."""

__version__ = "0.1.0.dev0"
