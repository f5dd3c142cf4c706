import { showPools } from './pools.js';

showPools(document.getElementById('pools'), 'live');
