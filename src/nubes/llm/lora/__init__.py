"""LoRA adapters: many variants of one model, served together.

From: Punica: Multi-Tenant LoRA Serving (MLSys 2024), for products over segments of rows; S-LoRA: Scalable Serving of
Thousands of LoRA Adapters (MLSys 2024), for adapters that lie in blocks of the KV pool.
"""
