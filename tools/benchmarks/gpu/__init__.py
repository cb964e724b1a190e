"""Parts of the GPU campaign; ``tools/benchmarks/gpu_campaign.sh`` runs them."""
