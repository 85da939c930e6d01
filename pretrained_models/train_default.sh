#!/usr/bin/env bash
# Train the default model again: bash pretrained_models/train_default.sh PHOTOS WORK [SCENE ...]
# PHOTOS holds sice_backlit/{input,ref_frame,gt}, low_light, kodak24 and well_lit_bsds (see README.md
# beside this file); SICE's SCENEs are held out. The weights end in WORK/rave_default.pth. The same
# command goes on where an earlier one was ended.
set -euo pipefail
photos=$1
work=$2
shift 2
held_out=${*:-1107 116 125 1492 1733 190} # every fifth scene
python=${PYTHON:-python}

others=(--simulate "$photos/kodak24" --simulate "$photos/well_lit_bsds"
    --backlit "$photos/low_light" --size 256 --exclude $held_out)
frame=("$photos/sice_backlit/input" "$photos/sice_backlit/ref_frame")
fused=("$photos/sice_backlit/input" "$photos/sice_backlit/gt")
settings=(--save_dir "$work" --guidance_encoder timm/tf_efficientnet_lite0
    --identity_encoder timm/tf_efficientnet_lite0 --guidance_stages 1 2 3 --guidance_grid 4
    --paired_residual --identity_scale 0.5 --start_light_map 1 --num_reconstruction_iters 0
    --train_batch_size 8 --num_epochs 100000 --weight_decay 0 --lr_warmup_iters 20 --lr_cosine
    --clip_grad_norm 20 --ema_decay 0.98 --num_workers 0 --device cpu)

mkdir -p "$work"

prepare() { # a folder, and what it is made of
    [ -f "$1.ready" ] && return
    rm -rf "$1"
    $python -m data.prepare "$1" "${@:2}" "${others[@]}"
    touch "$1.ready"
}

train() { # a run's name, its folder of photographs, and its own settings
    [ -f "$work/$1/snapshots_model/final.pth" ] && return
    local resume=()
    [ -f "$work/$1/last.pt" ] && resume=(--resume)
    $python train_rave.py --exp_name "$1" -b "$2/backlit" -r "$2/well_lit" "${settings[@]}" "${@:3}" \
        "${resume[@]}"
}

# First frames and fused references alike, then the fused ones alone at a larger size; the average
# of both stands between a brighter picture and one that keeps the sky:
prepare "$work/data" --pairs "${frame[@]}" --pairs "${fused[@]}" --crops 2
train first "$work/data" --image_size 112 --max_iters 1200 --train_lr 0.0002
prepare "$work/data2" --pairs "${fused[@]}" --crops 5
train second "$work/data2" --image_size 144 --max_iters 300 --train_lr 0.0001 \
    --unet_pretrain_dir "$work/first/snapshots_model/final.pth"
rm -f "$work/rave_default.pth"
$python -m pretrained_models.average "$work/rave_default.pth" \
    "$work/first/snapshots_model/final.pth" "$work/second/snapshots_model/final.pth"
