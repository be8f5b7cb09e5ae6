#!/bin/bash
# Meta-training on two nodes with four GPUs each: sbatch examples/slurm.sh. Not tested: it follows Lightning's documentation.
#SBATCH --job-name=metagenrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4      # one process for each GPU; the same as trainer.devices
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12       # one core for the process, the others for its environments
#SBATCH --time=24:00:00
#SBATCH --signal=SIGTERM@300     # five minutes before the time limit, the run saves and stops

source .venv/bin/activate
run_dir=runs/slurm_${SLURM_JOB_ID}

# If one process fails, srun ends the others, which would wait for it.
# A requeued job has the same number, so it resumes from its newest checkpoint.
if compgen -G "$run_dir/checkpoints/env_steps_*.ckpt" >/dev/null; then
    srun --kill-on-bad-exit=1 python train.py ckpt_path="$run_dir" trainer.devices=4 trainer.num_nodes=2 env_workers=11
else
    srun --kill-on-bad-exit=1 python train.py experiment=paper/lunar_cheetah population.size=64 run_dir="$run_dir" \
        trainer.accelerator=gpu trainer.devices=4 trainer.num_nodes=2 trainer.strategy=ddp env_workers=11
fi
