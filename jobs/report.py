"""Table, pictures and plots of several evaluations.

python -m jobs.report --runs outputs/e/bicubic outputs/e/edsr outputs/e/attentive --output outputs/report
python -m jobs.report --filter "tags.preset = 'mini'" --columns psnr_y ssim_y fd_vgg16 --output outputs/report
"""

import sys

from facelab.reports.report import REPORT

if __name__ == "__main__":
    sys.exit(REPORT.main())
