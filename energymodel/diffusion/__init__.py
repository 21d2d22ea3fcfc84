"""Pipelines of diffusers: text to image and text to video.

A pipeline encodes a prompt, denoises latents in many steps and decodes them. ``networks`` lists the
networks that are read, ``plans`` how each class of pipeline runs them. To add a network, write it as
a function from its configuration and the sizes of a pass to its calls, and enter it in ``networks``.
"""
