#!/bin/sh
#SBATCH --job-name=bertgeom
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#
#   bertgeom init genomes.fasta --model MODEL --out run.zarr
#   sbatch --parsable slurm-array.sh run.zarr
#   sbatch --dependency=afterok:JOB --wrap "bertgeom finalise run.zarr"
#
# A task that was killed is submitted again as it was; several may be at work on one share.
exec bertgeom run-partitions "$1" \
    --task "$SLURM_ARRAY_TASK_ID" --of "$SLURM_ARRAY_TASK_COUNT" \
    --threads "${SLURM_CPUS_PER_TASK:-1}"
